"""What measures the package and its tests, beside the tests themselves."""
