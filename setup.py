"""Package metadata. `make setup` installs the exact versions pinned in requirements/ first."""

from setuptools import find_packages, setup

setup(
    name="hvdtrain",
    version="0.1.0",
    description="Large-batch image classification on Ethernet clusters: Horovod, torch, DALI",
    packages=find_packages(include=["hvdtrain", "hvdtrain.*", "pipelines", "pipelines.*"]),
    package_data={"hvdtrain": ["py.typed", "telemetry/live_page/*", "report/templates/*"]},
    python_requires=">=3.10",
    install_requires=[
        "horovod>=0.28.1",
        "matplotlib>=3.9",
        "mpi4py>=4.0",
        "numpy>=2.2",
        "nvidia-dali-cuda130>=2.4",
        "pillow>=11",
        "prometheus-client>=0.20",
        "psutil>=5.9",
        "pydantic>=2.10,<3",
        "pyyaml>=6.0",
        "rich>=13.9",
        "safetensors>=0.4.5",
        "torch>=2.4",
        "typer>=0.15",
    ],
    entry_points={"console_scripts": ["hvdtrain = hvdtrain.cli.main:main"]},
)
