"""What a training step costs: time, memory and energy of many layouts at once, in closed form."""
