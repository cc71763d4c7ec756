"""Find mislabelled, duplicate and conflicting images in embeddings; drop or merge them when asked."""
