"""What a recipe, a data declaration and a suite may say, and how they are read."""
