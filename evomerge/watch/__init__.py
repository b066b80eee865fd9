"""Searches while they run: snapshots of run folders, and a terminal screen that shows them."""
