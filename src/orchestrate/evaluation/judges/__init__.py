"""A model that rates answers in the place of people, and how far it may be believed."""
