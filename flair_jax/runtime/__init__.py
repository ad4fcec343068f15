"""Devices, hosts, storage, files and the console."""
