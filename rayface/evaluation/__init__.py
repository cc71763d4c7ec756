"""Verification, identification, protocols and export of trained models."""
