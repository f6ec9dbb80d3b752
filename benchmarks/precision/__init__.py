"""Errors of round trips, log-determinants and integrals of trained flows."""
