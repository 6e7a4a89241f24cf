"""PDFs for tests, made by hand."""

import io
from collections.abc import Sequence

import pypdf

PICTURE = "q 612 0 0 792 0 0 cm /Im1 Do Q"


def pdf(*pages: str | None) -> bytes:
    """Make a PDF with a line of text on each page, or where there is none a picture."""
    contents = [PICTURE if text is None else f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" for text in pages]
    kids = " ".join(f"{5 + 2 * i} 0 R" for i in range(len(pages)))
    picture = "/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        _stream("\0", picture),
    ]
    resources = "<< /Font << /F1 3 0 R >> /XObject << /Im1 4 0 R >> >>"
    for i, content in enumerate(contents):
        page = f"/Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {resources} /Contents {6 + 2 * i} 0 R"
        objects += [f"<< {page} >>", _stream(content)]
    return _file(objects)


def encrypted(data: bytes, password: str) -> bytes:
    """Encrypt a PDF, which can be read with a password; with an empty one, by everybody."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(password, owner_password="owner", algorithm="AES-256")
    encrypted = io.BytesIO()
    writer.write(encrypted)
    return encrypted.getvalue()


def _stream(content: str, about: str = "") -> str:
    return f"<< {about} /Length {len(content)} >>\nstream\n{content}\nendstream"


def _file(objects: Sequence[str]) -> bytes:
    data = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()
