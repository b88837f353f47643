"""People in stories and small talk; a tenth of the names is never seen in training."""

from intone.data.starter.item import is_held_out, listed

NAMES = listed(
    """
Anna Ben Clara David Emma Felix Henry Isla Jack Kate Leo Mia Noah Olivia Paul Quinn Rosa Sam Tina Uma Victor
Wendy Xavier Yara Zoe Adam Bella Carl Eric Fiona George Hannah Ivan Julia Kevin Lily Max Nina Oscar Paula
Sara Tom Ursula Vera Alex Amy Andrew Alice Arthur Ava Betty Bruno Cara Chloe Chris Colin Cora
Dan Dora Dylan Edith Edward Elena Ella Ellen Elsa Emil Erik Esther Eva Evan Finn Fred Freya Gina
Gus Hal Harry Heidi Helen Hugo Ian Ida Ines Irene Jacob James Jane Jason Jenny Jill Joan Joe
John Jonas Judy Karen Karl Kim Lara Laura Lena Liam Linda Lisa Lola Louis Lucas Lucy Luke Luna Mara Marco
Maria Martha Martin Mary Matt Maya Megan Mike Milo Mira Molly Nadia Nancy Nathan Nell Nick Nora Olga Oliver
Omar Otto Pam Peter Petra Philip Polly Rachel Ralph Rita Robert Roger Ron Ruth Ryan Sally Simon Sofia
Sonia Stella Steve Susan Tara Ted Thomas Tim Toby Tony Vince Walter Abby Agnes Albert Amir Anton Asha Astrid
Bianca Boris Brenda Calvin Carmen Cecil Celia Conrad Cyrus Dario Delia Dennis Diana Doris Edgar Edwin
Elias Elise Enid Ernest Farah Gavin Gerald Gloria Gordon Greta Harold Hector Hilda Howard Imani Ingrid Isaac
Joel Josie Kira Kurt Layla Leon Lionel Lorna Lydia Mabel Malik Marta Maurice Melanie Mona Morris Naomi
Neil Norma Oona Orla Owen Pablo Percy Phoebe Priya Ramon Rhoda Roland Rufus Sandra Selma Seth Silas Sven
Tamara Tariq Tessa Theo Tilda Trudy Vivian Wanda Warren Willa Yusuf Zara
"""
)

HELD_OUT_NAMES = tuple(name for name in NAMES if is_held_out(("name", name)))
TRAINING_NAMES = tuple(name for name in NAMES if name not in HELD_OUT_NAMES)
