"""Countries by their ISO 3166 codes, and sub-regions of the United Nations (M49)."""

import torch
from torch import Tensor

# https://unstats.un.org/unsd/methodology/m49; Taiwan and Kosovo, which it does not
# list, are grouped with their neighbours.
_COUNTRIES = {
    'Australia and New Zealand': 'AUS CCK CXR HMD NFK NZL',
    'Caribbean': (
        'ABW AIA ATG BES BHS BLM BRB CUB CUW CYM DMA DOM GLP GRD HTI JAM KNA LCA MAF'
        ' MSR MTQ PRI SXM TCA TTO VCT VGB VIR'
    ),
    'Central America': 'BLZ CRI GTM HND MEX NIC PAN SLV',
    'Central Asia': 'KAZ KGZ TJK TKM UZB',
    'Eastern Africa': (
        'ATF BDI COM DJI ERI ETH IOT KEN MDG MOZ MUS MWI MYT REU RWA SOM SSD SYC TZA'
        ' UGA ZMB ZWE'
    ),
    'Eastern Asia': 'CHN HKG JPN KOR MAC MNG PRK TWN',
    'Eastern Europe': 'BGR BLR CZE HUN MDA POL ROU RUS SVK UKR',
    'Melanesia': 'FJI NCL PNG SLB VUT',
    'Micronesia': 'FSM GUM KIR MHL MNP NRU PLW UMI',
    'Middle Africa': 'AGO CAF CMR COD COG GAB GNQ STP TCD',
    'Northern Africa': 'DZA EGY ESH LBY MAR SDN TUN',
    'Northern America': 'BMU CAN GRL SPM USA',
    'Northern Europe': (
        'ALA DNK EST FIN FRO GBR GGY IMN IRL ISL JEY LTU LVA NOR SJM SWE'
    ),
    'Polynesia': 'ASM COK NIU PCN PYF TKL TON TUV WLF WSM',
    'South America': 'ARG BOL BRA BVT CHL COL ECU FLK GUF GUY PER PRY SGS SUR URY VEN',
    'South-eastern Asia': 'BRN IDN KHM LAO MMR MYS PHL SGP THA TLS VNM',
    'Southern Africa': 'BWA LSO NAM SWZ ZAF',
    'Southern Asia': 'AFG BGD BTN IND IRN LKA MDV NPL PAK',
    'Southern Europe': (
        'ALB AND BIH ESP GIB GRC HRV ITA MKD MLT MNE PRT SMR SRB SVN VAT XKX'
    ),
    'Western Africa': (
        'BEN BFA CIV CPV GHA GIN GMB GNB LBR MLI MRT NER NGA SEN SHN SLE TGO'
    ),
    'Western Asia': (
        'ARE ARM AZE BHR CYP GEO IRQ ISR JOR KWT LBN OMN PSE QAT SAU SYR TUR YEM'
    ),
    'Western Europe': 'AUT BEL CHE DEU FRA LIE LUX MCO NLD',
}
#: Names of `sub_region`, in the order of its numbers.
SUB_REGIONS = tuple(_COUNTRIES)
_SUB_REGION = {
    country: number
    for number, countries in enumerate(_COUNTRIES.values())
    for country in countries.split()
}
#: Codes of `country`, in the order of its numbers.
COUNTRIES = tuple(sorted(_SUB_REGION))
_COUNTRY = {country: number for number, country in enumerate(COUNTRIES)}


def country_metadata(code: str) -> dict[str, Tensor]:
    """Return `country` and `sub_region`, 0-d long, -1 if unknown.

    Args:
        code: Three letters, as in ISO 3166, '' if unknown.
    """
    return {
        'country': torch.tensor(_COUNTRY.get(code, -1)),
        'sub_region': torch.tensor(_SUB_REGION.get(code, -1)),
    }
