"""Its place in this folder makes pytest import the folder's modules under the names that they have here."""
