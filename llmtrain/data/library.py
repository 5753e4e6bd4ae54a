"""The optional packages that cleaning rules use. Standard library only, until one is asked for."""

import importlib.metadata
import importlib.util

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.errors import did_you_mean, require

PACKAGES = {
    "html": ("resiliparse", "resiliparse"),
    "mojibake": ("ftfy", "ftfy"),
    "mask_phone": ("phonenumberslite", "phonenumbers"),
    "scripts": ("regex", "regex"),
}
"""Rule -> (package, the module that it is imported by)."""


def check_libraries(config: CleanConfig) -> None:
    """Refuse rules whose package is not installed, and countries that it does not know.

    Raises:
        ConfigError: names the rule, the package and what to type.
    """
    for rule, (package, module) in PACKAGES.items():
        if not getattr(config, rule):
            continue
        require(
            importlib.util.find_spec(module) is not None,
            f"data.clean.{rule} needs the package {package}: pip install 'llmtrain[clean]', or "
            f"leave data.clean.{rule} out.",
        )
    if config.mask_phone:
        from phonenumbers import SUPPORTED_REGIONS

        for region in config.phone_regions:
            require(
                region in SUPPORTED_REGIONS,
                f"data.clean.phone_regions has {region}, which is no country that numbers are "
                f"known of.{did_you_mean(region, SUPPORTED_REGIONS)}",
            )


def library_versions(config: CleanConfig) -> dict[str, str]:
    """Return the versions of the packages that rules which are on use: they decide on the text."""
    return {
        package: importlib.metadata.version(package)
        for rule, (package, _) in PACKAGES.items()
        if getattr(config, rule)
    }
