"""The words of the domain: frozen dataclasses that every room speaks. Imports no other room."""
