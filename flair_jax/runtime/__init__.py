"""Devices, processes, storage, files and the console."""
