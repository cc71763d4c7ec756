"""Curation: find wrong images and identities, and select the images to train on."""
