"""Train Mask R-CNN on several GPUs, one process per GPU. Under torchrun, train.py does the same.

torchrun --nproc_per_node=8 train_multi_GPU.py --data-path /data/coco2017
CUDA_VISIBLE_DEVICES=0,3 torchrun --nproc_per_node=2 train_multi_GPU.py --data-path ...
torchrun --nproc_per_node=2 train_multi_GPU.py --device cpu                      # the demo, on two CPU processes
torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=HOST0 train_multi_GPU.py ...   # on each of two
"""

from train import main
from train_utils.distributed import process_group
from train_utils.errors import one_line_errors
from train_utils.options import TrainSettings

if __name__ == "__main__":
    with one_line_errors():
        settings = TrainSettings.parse(__doc__)
        with process_group(settings):
            main(settings)
