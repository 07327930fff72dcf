"""The package inside other people's software: see that section of the README."""
