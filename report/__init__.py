"""Write a report on a network's results and errors and on faults in its data."""
