# rayface in Ray's image, for clusters whose nodes should not install it when they start.
#
#   docker build -t rayface:cpu .
#   docker build -t rayface:gpu --build-arg VARIANT=gpu .
#
# The tag carries the ray version of constraints.txt and Python 3.11: nodes of different versions cannot form a cluster.
ARG VARIANT=cpu
FROM rayproject/ray:2.60.0-py311-${VARIANT}
COPY --chown=ray:users . /home/ray/rayface
RUN pip install --no-cache-dir -c /home/ray/rayface/constraints.txt ray==2.60.0 "/home/ray/rayface[onnx,s3]"
