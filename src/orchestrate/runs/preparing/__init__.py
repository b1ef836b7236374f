"""Plan and price a submit on each backend before anything is sent."""
