"""Verification, identification and evaluation protocols."""
