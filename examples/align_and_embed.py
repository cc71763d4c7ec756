"""Find, align and embed the faces of photographs, and compare them.

    python examples/align_and_embed.py runs/webface12m-001 face_detection_yunet_2023mar.onnx a.jpg b.jpg

The detector is OpenCV's YuNet, a file of 0.2 to 0.4 MB from the OpenCV Zoo; nothing is downloaded here.
"""

import argparse
import itertools

import cv2
import numpy as np

from rayface import load_model
from rayface.evaluation.alignment import align


def largest_face(photograph: np.ndarray, detector: str, score: float) -> np.ndarray | None:
    """Return the five landmarks (5, 2) of the largest face in a BGR photograph; None if no face reaches the score."""
    height, width = photograph.shape[:2]
    found = cv2.FaceDetectorYN.create(detector, "", (width, height), score_threshold=score).detect(photograph)[1]
    if found is None:
        return None
    largest = max(found, key=lambda face: face[2] * face[3])  # x, y, width, height, landmarks, score
    return np.reshape(largest[4:14], (5, 2))


def main() -> None:
    """Embed the largest face of each photograph and print the cosine of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run directory, model.safetensors or .onnx")
    parser.add_argument("detector", help="YuNet's .onnx file")
    parser.add_argument("photographs", nargs="+")
    # OpenCV's default of 0.9 misses clearly visible faces.
    parser.add_argument("--score", type=float, default=0.6, help="of the detector, from 0 to 1; default 0.6")
    options = parser.parse_args()
    model = load_model(options.model)
    faces = []
    for path in options.photographs:
        photograph = cv2.imread(path)
        if photograph is None:
            raise SystemExit(f"{path} is not a picture that can be read")
        landmarks = largest_face(photograph, options.detector, options.score)
        if landmarks is None:
            raise SystemExit(f"{path}: no face was found: another photograph, or a lower --score?")
        face = align(photograph, landmarks, model.info.image_size)
        faces.append(cv2.cvtColor(face, cv2.COLOR_BGR2RGB))
    embeddings = model.embed(np.stack(faces))
    for path, embedding in zip(options.photographs, embeddings, strict=True):
        print(f"{path}: {len(embedding)} numbers, the first {np.array2string(embedding[:4], precision=3)}")
    for (a, one), (b, other) in itertools.combinations(zip(options.photographs, embeddings, strict=True), 2):
        print(f"{a} and {b}: cosine {one @ other:.3f}")


if __name__ == "__main__":
    main()
