"""The package inside other people's software: see the README's section on that."""
