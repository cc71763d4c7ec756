"""Find, align and embed the faces of photographs, and compare them.

    python examples/align_and_embed.py runs/webface12m-001 face_detection_yunet_2023mar.onnx a.jpg b.jpg

The detector is OpenCV's YuNet, a file of 0.2 to 0.4 MB from the OpenCV Zoo; nothing is downloaded here.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from rayface import load_model
from rayface.alignment.detector import Detector, YuNet
from rayface.evaluation.alignment import align


def aligned_face(path: str, detect: Detector, size: int) -> NDArray[np.uint8]:
    """Return the largest face of a photograph, aligned, uint8 RGB (size, size, 3)."""
    photograph = cv2.imread(path)
    if photograph is None:
        raise ValueError(f"{path}: cannot be read as an image")
    faces = detect(photograph)
    if not faces:
        raise ValueError(f"{path}: no face was found: give another photograph, or a lower --score")
    largest = max(faces, key=lambda face: face.size[0] * face.size[1])
    return cv2.cvtColor(align(photograph, largest.landmarks, size), cv2.COLOR_BGR2RGB)


def compare(model: str, detector: str, photographs: Sequence[str], min_score: float) -> None:
    """Embed the largest face of each photograph and print the cosine of each pair.

    Raises:
        ValueError: a file that cannot be read, or a photograph without a face; one line.
    """
    loaded, detect = load_model(model), YuNet(detector, min_score)
    faces = [aligned_face(path, detect, loaded.info.image_size) for path in photographs]
    embeddings = loaded.embed(np.stack(faces))
    for path, embedding in zip(photographs, embeddings, strict=True):
        print(f"{path}: {len(embedding)} numbers, the first {np.array2string(embedding[:4], precision=3)}")
    for (a, one), (b, other) in itertools.combinations(zip(photographs, embeddings, strict=True), 2):
        print(f"{a} and {b}: cosine {one @ other:.3f}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run directory, model.safetensors or .onnx")
    parser.add_argument("detector", help="YuNet's .onnx file")
    parser.add_argument("photographs", nargs="+")
    # OpenCV's default of 0.9 misses clearly visible faces.
    parser.add_argument("--score", type=float, default=0.6, help="of the detector, from 0 to 1; default 0.6")
    options = parser.parse_args()
    try:
        compare(options.model, options.detector, options.photographs, options.score)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
