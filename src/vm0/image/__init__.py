"""Guest images: a Debian kernel, a small initramfs and a squashfs root, made from a recipe, named by what made them."""

from __future__ import annotations

from vm0.image.build import build_image, guest_build
from vm0.image.errors import BuildError, ImageError, RecipeError
from vm0.image.layers import BuildOptions
from vm0.image.recipe import Recipe, load_recipe, shipped_recipes
from vm0.image.store import Image, ImageStore

__all__ = [
    "BuildError",
    "BuildOptions",
    "Image",
    "ImageError",
    "ImageStore",
    "Recipe",
    "RecipeError",
    "build_image",
    "guest_build",
    "load_recipe",
    "shipped_recipes",
]
