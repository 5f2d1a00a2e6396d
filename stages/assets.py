"""Stage assets: models and data of the configuration → shared cache; what they are → reports/assets, one JSON per role."""

import argparse

from dream import manifest
from dream.config import stages
from dream.errors import exits_cleanly
from dream.files import replacing_folder, write_json


@exits_cleanly
def main() -> None:
    argparse.ArgumentParser(prog="python -m stages.assets", description=__doc__).parse_args()
    config = stages.load("assets")
    with manifest.recording("assets") as record:
        from dream import assets, models, systems
        from dream.assets.models import attention_heads
        from dream.data import code, needs

        needs.check_available(config)
        found, data = needs.models(config.roles), needs.data(config)
        config.heads.require(*attention_heads(assets.model_path(config.roles["judge"].model)))
        used = sorted({"encoder", *config.references} & set(config.roles))
        rules = {name: models.rules(config.roles[name], f"models.{name}") for name in used}
        models.check_trainable(rules["encoder"], config.encoder.max_length)
        with replacing_folder("reports/assets") as folder:
            for role in ("encoder", "judge", "generator", "dense"):  # those not in use: an empty record
                write_json(folder / f"{role}.json", found.get(role, {}))
            for name in config.references:
                write_json(folder / f"{name}.json", systems.stands_on(name, found))
            write_json(folder / "data.json", {"assets": data, "code": code.versions()})
        record.notes = {"assets": [*found.values(), *data]}
    for role, entry in found.items():
        print(f"[assets] model {entry['name']} ({role}), {entry.get('licence', 'see its card')}")
    for entry in data:
        print(f"[assets] data {entry['name']} ({entry['used_for']}), {entry['licence']}")


if __name__ == "__main__":
    main()
