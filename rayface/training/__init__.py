"""Training: what runs on the driver, on every worker, and what is kept between them."""
