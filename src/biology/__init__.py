"""Molecules, genomes and proteins as sequences."""
