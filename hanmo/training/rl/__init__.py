"""Shared by the stages that learn from rewards."""
