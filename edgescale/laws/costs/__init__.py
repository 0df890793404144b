"""Cost models: time from work and traffic, generation on a device, energy, a device's lifetime."""
