"""The Inspect side: tasks, solvers, scorers, and the driver that answers the protocol with Inspect models."""
