"""Samples of results to import: a large file, and many small ones. Their rows are the
same every time, and some of them are bad.
"""

import csv
import io
import random
from collections.abc import Callable, Iterable

#: The number of rows of the large file.
ROWS = 20_000

#: For each country: the weight of its runners, given names and family names.
COUNTRIES = {
    "USA": (
        9,
        "Emma Noah Olivia Liam Ava Mason Harper Wyatt Zoe Caleb",
        "Adams Brooks Carter Diaz Ellis Foster Hayes Morgan Reed Sullivan",
    ),
    "GBR": (
        5,
        "Amelia Oliver Isla George Freya Harry Poppy Alfie Niamh Rhys",
        "Ainsworth Bennett Clarke Davies Evans Hughes Kelly Murray Patel Shaw",
    ),
    "GER": (
        5,
        "Lena Jonas Mia Finn Clara Lukas Jule Max Greta Paul",
        "Bauer Fischer Hoffmann Keller Lange Müller Richter Schulz Vogel Weiß",
    ),
    "FRA": (
        4,
        "Léa Hugo Chloé Jules Manon Louis Inès Gabriel Zoé Raphaël",
        "Bernard Dubois Fontaine Girard Lefèvre Moreau Petit Roux Simon Vidal",
    ),
    "JPN": (
        4,
        "Yui Haruto Sakura Ren Hina Sota Aoi Yuto Mei Riku",
        "Sato Suzuki Takahashi Tanaka Ito Watanabe Yamamoto Nakamura Kobayashi Kato",
    ),
    "KEN": (
        3,
        "Faith Kipchoge Joyce Daniel Mercy Amos Ruth Elijah Purity Evans",
        "Chebet Cheruiyot Jepkemoi Kamau Kiplagat Korir Mutai Njoroge Rotich Wanjiru",
    ),
    "ETH": (
        3,
        "Almaz Haile Tigist Kenenisa Meseret Tamirat Selam Lelisa Hiwot Dawit",
        "Abebe Bekele Dibaba Gebre Kebede Lemma Mekonnen Tadesse Tola Wolde",
    ),
    "BRA": (
        3,
        "Ana João Beatriz Pedro Camila Rafael Larissa Thiago Júlia Caio",
        "Almeida Barbosa Costa Ferreira Gomes Lima Oliveira Rocha Santos Souza",
    ),
    "MEX": (
        3,
        "Sofía Diego Valentina Mateo Regina Emiliano Ximena Luis Renata José",
        "Aguilar Cruz Flores García Hernández López Martínez Ortiz Ramírez Torres",
    ),
    "IND": (
        3,
        "Aadhya Arjun Diya Rohan Isha Vikram Kavya Aditya Meera Sanjay",
        "Agarwal Bhat Desai Iyer Kapoor Mehta Nair Rao Sharma Singh",
    ),
    "NOR": (
        2,
        "Ingrid Magnus Solveig Henrik Astrid Lars Nora Sindre Tuva Eirik",
        "Aas Berg Dahl Eide Haugen Lie Moen Nilsen Solberg Øyen",
    ),
    "POL": (
        2,
        "Zofia Jakub Hanna Szymon Maja Kacper Alicja Piotr Lena Michał",
        "Baran Dąbrowski Górski Kowalski Lis Nowak Pawlak Sikora Wójcik Zając",
    ),
    "RSA": (
        2,
        "Thandi Sipho Lerato Pieter Naledi Themba Anele Johan Zanele Kagiso",
        "Botha Dlamini Khumalo Mokoena Naidoo Nkosi Pillay Sithole Van\u00a0Wyk Zulu",
    ),
}

#: The towns that have sent their results, by country: a small file each.
TOWNS = {
    "USA": "Albany Austin Boise Boston Chicago Dallas Denver Detroit Fresno Honolulu "
    "Houston Memphis Miami Nashville Omaha Orlando Phoenix Portland Reno Seattle "
    "Tampa Tulsa",
    "GBR": "Aberdeen Bath Belfast Brighton Bristol Cardiff Durham Glasgow Leeds Oxford "
    "Sheffield Swansea York",
    "GER": "Berlin Bonn Bremen Dortmund Dresden Erfurt Essen Hamburg Kassel Leipzig "
    "Mainz Potsdam Rostock",
    "FRA": "Annecy Bordeaux Dijon Grenoble Lille Lyon Nantes Nice Reims Toulouse",
    "JPN": "Fukuoka Hiroshima Kobe Kyoto Nagano Nagoya Nara Osaka Sapporo Sendai",
    "KEN": "Eldoret Iten Kisumu Malindi Mombasa Nairobi Nakuru",
    "ETH": "Adama Asella Bahirdar Gondar Harar Hawassa Mekelle",
    "BRA": "Brasilia Curitiba Fortaleza Manaus Natal Olinda Recife Salvador",
    "MEX": "Cancun Durango Guadalajara Monterrey Oaxaca Puebla Tijuana",
    "IND": "Chennai Delhi Hyderabad Jaipur Kochi Mumbai Mysuru Pune",
    "NOR": "Bergen Oslo Stavanger Tromso Trondheim",
    "POL": "Gdansk Krakow Lublin Poznan Warsaw",
    "RSA": "Durban Johannesburg Kimberley Polokwane Pretoria",
}

#: The small files by name: the country of the runners.
FILES = {
    f"{town.lower()}.csv": country
    for country, towns in TOWNS.items()
    for town in towns.split()
}

#: The small files that were cut off on their way: the line in whose middle they end.
CUT_OFF = {"durham.csv": 58, "oslo.csv": 41}

#: What can be wrong with a row: one in fifty has one of these faults.
FAULTS: tuple[Callable[[list[str]], object], ...] = (
    lambda row: row.__setitem__(0, row[0] + "A"),
    lambda row: row.__setitem__(1, ""),
    lambda row: row.__setitem__(2, row[2][:2]),
    lambda row: row.__setitem__(3, row[3].replace("@", " at ")),
    lambda row: row.__setitem__(4, "DNF"),
    lambda row: row.__setitem__(4, row[4].replace(":", ".")),
    lambda row: row.__setitem__(0, "7"),
    lambda row: row.pop(),
)


def make() -> bytes:
    """Return the large file."""
    # Not for secrets: the sample is the same every time.
    rng = random.Random(26.2)
    weights = [weight for weight, _, _ in COUNTRIES.values()]
    return written(rng, rng.choices(list(COUNTRIES), weights, k=ROWS), faultless=100)


def make_file(filename: str) -> bytes:
    """Return one of the small files, complete."""
    rng = random.Random(filename)
    return written(rng, [FILES[filename]] * rng.randint(60, 200), faultless=10)


def make_files() -> dict[str, bytes]:
    """Return the small files by name, in alphabetical order. Some were cut off."""
    files = {filename: make_file(filename) for filename in sorted(FILES)}
    for filename, line in CUT_OFF.items():
        lines = files[filename].splitlines(keepends=True)
        middle = len(lines[line - 1]) // 2
        files[filename] = b"".join([*lines[: line - 1], lines[line - 1][:middle]])
    return files


def written(rng: random.Random, countries: Iterable[str], faultless: int) -> bytes:
    """Return a CSV file.

    Parameters:
      rng: Decides all the rest.
      countries: The country of each runner.
      faultless: The number of rows at the beginning that are all right.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["bib", "name", "country", "email", "finish"])
    for bib, country in enumerate(countries, start=1):
        _, *names = COUNTRIES[country]
        given, family = (rng.choice(part.split(" ")) for part in names)
        # Most take four hours, some walk home, and a few are here to win.
        if rng.random() < (0.02 if country in ("ETH", "KEN") else 0.0002):
            seconds = int(7_560 + rng.expovariate(1 / 900))
        else:
            seconds = int(8_100 + rng.lognormvariate(8.75, 0.4))
        row = [
            str(bib),
            f"{given} {family}",
            country,
            f"runner{bib}@example.com" if rng.random() < 0.6 else "",
            f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        ]
        if rng.random() < 0.02 and bib > faultless:
            rng.choice(FAULTS)(row)
        writer.writerow(row)
    return text.getvalue().encode()
