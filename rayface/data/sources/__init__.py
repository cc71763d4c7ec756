"""Sources of images for `rayface convert`, one file each."""
