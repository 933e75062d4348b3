"""What makes a CPU quick: measured, exact, and used where the device is a CPU."""
