"""Write a page that shows what a network learned and what is wrong with the data."""
