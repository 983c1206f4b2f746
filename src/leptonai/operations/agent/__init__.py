"""What a node tells about itself: processor, memory, disks, network, sensors, kernel messages, accelerators."""
