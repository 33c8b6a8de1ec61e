"""Templates of the cards that describe models and data sets on the Hub."""
