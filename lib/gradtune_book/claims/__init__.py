"""What the papers claim, as data, and how a claim is judged with its uncertainty.

Estimates, statistical comparisons, the claims' own types and the inventory of all figures and tables belong here. May
import the book's rooms below (records, notebooks). Does not belong here: what one paper says (`papers`), and how a page
looks (`pages`).
"""
