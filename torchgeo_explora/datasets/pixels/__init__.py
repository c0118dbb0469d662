"""Reading and showing single images."""
