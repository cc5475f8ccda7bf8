"""Every recommender and baseline on the test part."""
