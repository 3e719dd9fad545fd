"""What every detector of this project shares."""
