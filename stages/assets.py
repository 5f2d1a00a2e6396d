"""Stage assets: models and data of the config → shared cache; what they are → work/assets, a JSON per role and one of data."""

import argparse

from dream import config as configs
from dream import manifest
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json

SECTIONS = ("references", "published")  # beside size and recipe: what later stages need is fetched on demand too


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.assets", description=__doc__)
    parser.add_argument("--size", required=True, help="model size; must equal model.size in params.yaml")
    args = parser.parse_args()

    config = configs.load_for_stage(args.size)
    with manifest.recording(config, "assets") as record:
        from dream import assets, encoder
        from dream.assets import models
        from dream.data import code, needs
        from dream.evaluation import systems

        needs.check_available(config)
        found, data = needs.models(needs.roles(config)), needs.data(config)
        config.heads.require(*models.attention_heads(assets.model_path(config.size.judge)))
        encoder.check_lengths(config)
        for name in set(config.references) & set(config.published):
            systems.resolve(name, config)
        with replacing_folder("work/assets") as folder:
            for role, model in found.items():
                write_json(folder / f"{role}.json", model)
            write_json(folder / "data.json", {"assets": data, "code": code.versions()})
            manifest.stamp(folder, config, *SECTIONS)
        record.notes = {"assets": len(found) + len(data)}
    for entry in [*({**model, "used_for": role} for role, model in found.items()), *data]:
        print(f"[assets] {entry['kind']:5} {entry['name']} ({entry['used_for']}), {entry.get('licence', 'see its card')}")


if __name__ == "__main__":
    main()
