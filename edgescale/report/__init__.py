"""What people see: tables for the terminal, the same as text, HTML or SVG files, and JSON payloads."""
