"""What the stages that learn from rewards share."""
