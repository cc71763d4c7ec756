"""Choosing which faces to train on. The methods are pure (arrays in, arrays out) and import no Ray."""
