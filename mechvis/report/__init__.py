"""Reports: one self-contained HTML file made of sections and blocks.

The file needs nothing but itself: no network, no server, no script but the few lines that sort tables (and it reads
as well without them). Everything that comes from data is escaped; a content security policy inside the page forbids
whatever is not in the file.
"""

from mechvis.report.blocks import Code, Facts, Figure, Images, Note, Section, Table, Text, Tile, Tiles
from mechvis.report.build import write_report

__all__ = ["Code", "Facts", "Figure", "Images", "Note", "Section", "Table", "Text", "Tile", "Tiles", "write_report"]
