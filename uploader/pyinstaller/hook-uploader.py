"""What PyInstaller cannot see: modules that are imported by name, data, and oss2's signers.

Source: PyInstaller manual, "Understanding PyInstaller Hooks" and "Providing PyInstaller Hooks
with your Package".
"""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

hiddenimports = [
    *collect_submodules("uploader", filter=lambda name: name != "uploader.devserver.pytest_plugin"),
    "oss2.auth",
    "oss2.utils",
]
datas = collect_data_files("uploader") + copy_metadata("vodup", recursive=True)
