"""The rows of a table, each trained with several seeds on Ray, and their report."""
