"""A durable privacy budget for each data set, tenant and block of users."""
