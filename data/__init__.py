"""Numbers with their sources; read through `lumoe.resources.data_path`."""
