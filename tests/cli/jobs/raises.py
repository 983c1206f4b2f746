rate = 0.1

raise ValueError("no luck")
