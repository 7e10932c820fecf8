# make train_rrhf     the CPU program       make train_rrhfcu   the same on an NVIDIA GPU
# make test           every test            make dev/convert    to and from other formats
# Optional libraries are used where they are found; the first line printed says which. Leave one out with NO_BLAS=1,
# NO_ONEDNN=1, NO_OMP=1, NO_STB=1, NO_MPI=1. make CC=clang CFLAGS_EXTRA='-Wall -Wextra' builds without a warning.
# NVCC_EXTRA='-I/elsewhere/include -L/elsewhere/lib' is given to nvcc, for a cuBLASLt that is not where the toolkit is.

CC     = gcc
LDLIBS = -lm
UNAME := $(shell uname)
HEADERS = world.h util.h model.h dataloader.h tokenizer.h rrhf.h sampler.h reward.h eval.h verbs.h $(wildcard dev/*.h)

# builds: does a program with this header and these flags compile and link?  $(call builds,header,flags)
hash := \#
builds = $(shell printf '$(hash)include <$(1)>\nint main(void){return 0;}\n' | \
           $(CC) -x c - -o /dev/null $(2) 2>/dev/null && echo yes)

NATIVE := $(firstword $(foreach f,-march=native -mcpu=native,$(if $(call builds,stdio.h,$(f)),$(f)))) # of this CPU; none in a cross-compiler
# -fno-tree-slp-vectorize: gcc 12 with AVX-512 made {1, 1, 1, 0} into four ones (test_reference); it costs no speed
CFLAGS = -std=c11 -O3 $(NATIVE) -ffp-contract=fast -fopenmp-simd -fno-math-errno -fno-trapping-math -fno-tree-slp-vectorize

ifndef NO_OMP # on a Mac: brew install libomp
  OMP_MAC = -Xpreprocessor -fopenmp -I$(shell brew --prefix libomp 2>/dev/null)/include -L$(shell brew --prefix libomp 2>/dev/null)/lib -lomp
  ifeq ($(call builds,omp.h,-fopenmp),yes)
    OMP = -fopenmp
  else ifeq ($(UNAME)$(call builds,omp.h,$(OMP_MAC)),Darwinyes)
    OMP = $(OMP_MAC)
  endif
endif
ifndef NO_BLAS # OpenBLAS, or another library with cblas.h, or the Mac's Accelerate
  BLAS := $(firstword $(foreach f,-lopenblas -lcblas -lblas,$(if $(call builds,cblas.h,$(f)),$(f))))
  VECLIB = -I$(shell xcrun --show-sdk-path)/System/Library/Frameworks/Accelerate.framework/Versions/A/Frameworks/vecLib.framework/Headers -framework Accelerate
  ifeq ($(BLAS)$(UNAME),Darwin)
    BLAS := $(if $(call builds,cblas.h,$(VECLIB)),$(VECLIB))
  endif
endif
# The program multiplies by the BLAS where the CPU has no AVX2; elsewhere the built-in product is as fast or faster
# (dev/bench/README.md). make AVX2= takes the BLAS all the same. The tests have both.
AVX2 := $(findstring __AVX2__,$(shell $(CC) $(NATIVE) -dM -E -x c /dev/null))
ifndef NO_ONEDNN # for --dtype bf16
  ONEDNN := $(if $(call builds,dnnl.h,-ldnnl),-ldnnl)
endif
ifndef NO_MPI # for several processes: what mpicc would add, in words that nvcc takes, too
  MPI := $(filter -I% -L% -l%,$(shell mpicc -show 2>/dev/null))
  MPI += $(foreach d,$(filter -L%,$(MPI)),-Xlinker -rpath -Xlinker $(d:-L%=%))
  MPI := $(if $(call builds,mpi.h,$(MPI)),$(MPI))
endif
CJSON := $(call builds,cjson/cJSON.h,-lcjson)
ifndef NO_STB
  STB := $(firstword $(foreach d,/usr/include/stb /usr/local/include/stb /opt/homebrew/include .,$(if $(wildcard $(d)/stb_image_write.h),$(d))))
endif

OPTIONS = $(OMP) $(if $(BLAS),$(if $(AVX2),,-DUSE_CBLAS -DGEMM_DEFAULT=GEMM_CBLAS)) $(if $(ONEDNN),-DUSE_ONEDNN) $(if $(STB),-DHAVE_STB -I$(STB)) \
          $(if $(MPI),-DUSE_MPI $(filter -I%,$(MPI))) $(CFLAGS_EXTRA)
LIBS = $(if $(AVX2),,$(BLAS)) $(ONEDNN) $(filter-out -I%,$(MPI)) $(LDLIBS)
$(info found: $(if $(OMP),OpenMP,no OpenMP (one thread)), $(if $(BLAS),CBLAS $(BLAS)$(if $(AVX2), (for the tests: with AVX2 the built-in product is faster)),no CBLAS (built-in matrix product)), \
$(if $(ONEDNN),oneDNN,no oneDNN (no --dtype bf16; Debian: libdnnl-dev)), \
$(if $(STB),stb_image_write,no stb_image_write (no plots; Debian: libstb-dev)), \
$(if $(MPI),MPI,no MPI (one process; Debian: libopenmpi-dev)))

train_rrhf: train_rrhf.c $(HEADERS)
	$(CC) $(CFLAGS) $(OPTIONS) -o $@ train_rrhf.c $(LIBS)

dev/convert: dev/convert.c $(HEADERS)
	@test -n "$(CJSON)" || { echo "dev/convert: no cJSON found; install it (Debian: libcjson-dev)"; exit 1; }
	$(CC) $(CFLAGS) $(CFLAGS_EXTRA) -o $@ dev/convert.c -lcjson $(LDLIBS)

dev/imdb: dev/imdb.c $(HEADERS)
	$(CC) $(CFLAGS) $(CFLAGS_EXTRA) -o $@ dev/imdb.c $(LDLIBS)

dev/table: dev/table.c $(HEADERS)
	$(CC) $(CFLAGS) $(if $(STB),-DHAVE_STB -I$(STB)) $(CFLAGS_EXTRA) -o $@ dev/table.c $(LDLIBS)

# Tests: each is one program (or script) that prints a line per check and ends with "N passed, N failed".
TEST_BUILD = $(CC) $(CFLAGS) -O2 $(OPTIONS) $(if $(BLAS),-DUSE_CBLAS) -DNO_MAIN -o $@ $< $(LIBS) $(BLAS)
TESTS = $(addprefix test/test_,tokenizer plot table eval rrhf gradients model model_double model_vector16 model_vector64 reference sampler policies \
          $(if $(CJSON),convert))
test/test_%: test/test_%.c train_rrhf.c test/test.h $(HEADERS)
	$(TEST_BUILD)
test/test_table: dev/table.c
test/test_model_vector%: test/test_model.c train_rrhf.c test/test.h $(HEADERS) # a vector width that this machine may lack
	$(TEST_BUILD) -DVECTOR=$*
test/test_gradients: test/test_gradients.c train_rrhf.c test/test.h $(HEADERS)
	$(TEST_BUILD) -DREAL=double
test/test_model_double: test/test_model.c train_rrhf.c test/test.h $(HEADERS)
	$(TEST_BUILD) -DREAL=double

NVCC ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
PRECISION = BF16 # or FP32
GPU := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -Eo '^[0-9]+\.[0-9]+' | sort -u | tr -d .)
# Of the GPUs here, if all are of one kind that this nvcc knows:
GPU_HERE = $(if $(filter 1,$(words $(GPU))),$(filter sm_$(GPU),$(shell $(NVCC) --list-gpu-code)))
GPU_ARCH = $(if $(GPU_HERE),-arch=$(GPU_HERE),-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90)
NCCL = $(if $(MPI),$(shell printf '$(hash)include <nccl.h>\nint main(){return 0;}\n' | \
         $(NVCC) -x cu - -o /dev/null $(NVCC_EXTRA) -lnccl 2>/dev/null && echo -DUSE_MPI $(MPI) -lnccl))
GPU_BUILD = $(NVCC) -std=c++17 -O3 $(GPU_ARCH) -Xlinker -rpath,$(dir $(NVCC))../lib64:$(dir $(NVCC))../lib $(if $(OMP),-Xcompiler -fopenmp) $(if $(STB),-DHAVE_STB -I$(STB)) $(NVCC_EXTRA)

train_rrhfcu: train_rrhf.cu dev/.precision-$(strip $(PRECISION)) $(HEADERS)
	@test -n "$(NVCC)" || { echo "train_rrhfcu: no nvcc found; install the CUDA toolkit or set NVCC=. ./train_rrhf does the same on the CPU."; exit 1; }
	$(GPU_BUILD) -DPRECISION_$(strip $(PRECISION)) $(NCCL) -o $@ train_rrhf.cu -lcublasLt
dev/.precision-%: # a build in the other precision starts afresh
	@rm -f dev/.precision-*; touch $@

# What is tested on Linux only: the emulation and the scripts want its calls and commands.
LINUX = $(filter Linux,$(UNAME))

# The CUDA kernels against the CPU: on test/cuda_emulation.h, and on the GPU where there is one with nvcc.
CXX = g++
EMULATED_TESTS = $(addprefix test/test_cuda_,fp32 bf16 races_fp32 races_bf16)
PTX_TESTS = $(if $(and $(NVCC),$(shell command -v python3),$(filter x86_64,$(shell uname -m))),test/test_cuda_ptx_fp32 test/test_cuda_ptx_bf16)
GPU_TESTS = $(if $(and $(GPU),$(NVCC)),test/test_cuda_gpu_fp32 $(if $(filter 7%,$(GPU)),,test/test_cuda_gpu_bf16)) # Turing has no bfloat16
CUDA_TESTS = $(if $(and $(LINUX),$(shell command -v $(CXX))),$(EMULATED_TESTS) $(PTX_TESTS)) $(GPU_TESTS)
CUDA_PARTS = test/test_cuda.cu test/cuda_emulation.h test/cpu_layers.h test/test.h train_rrhf.cu $(HEADERS)
OF_TARGET = -DPRECISION_$(if $(findstring fp32,$@),FP32,BF16) # as its name says
EMULATION = $(CXX) -x c++ -std=c++17 -O1 -g -fno-strict-aliasing -DCUDA_EMULATION -o $@
EMULATED = $(EMULATION) test/test_cuda.cu -x none test/cpu_layers.o -lm
test/cpu_layers.o: test/cpu_layers.c test/cpu_layers.h train_rrhf.c $(HEADERS)
	$(CC) $(CFLAGS) -O2 $(CFLAGS_EXTRA) -c -o $@ test/cpu_layers.c
test/test_cuda_fp32: test/cpu_layers.o $(CUDA_PARTS)
	$(EMULATED) -DPRECISION_FP32
test/test_cuda_bf16: test/cpu_layers.o $(CUDA_PARTS)
	$(EMULATED) -DPRECISION_BF16 -fsanitize=address,undefined
test/test_cuda_races_%: test/cpu_layers.o $(CUDA_PARTS)
	$(EMULATED) $(OF_TARGET) -fsanitize=thread
test/kernels_%.h: test/ptx.py train_rrhf.cu $(HEADERS) # what nvcc makes of the kernels, as C++
	$(NVCC) -std=c++17 -O3 -ptx -arch=compute_90 $(NVCC_EXTRA) $(OF_TARGET) -o $@.ptx train_rrhf.cu \
	    && python3 test/ptx.py < $@.ptx > $@.new || echo '#define PTX_NONE "nvcc or test/ptx.py gave up (rm $@; make $@ says why)"' > $@.new
	@mv $@.new $@; rm -f $@.ptx
.PRECIOUS: test/kernels_%.h
test/test_cuda_ptx_%: test/kernels_%.h test/cpu_layers.o $(CUDA_PARTS)
	$(EMULATED) $(OF_TARGET) '-DEMULATION_PTX="kernels_$*.h"' -g0 -march=native -ffp-contract=off -no-pie -rdynamic -ldl
test/test_cuda_gpu_%: test/cpu_layers.o $(CUDA_PARTS)
	$(GPU_BUILD) $(OF_TARGET) -o $@ test/test_cuda.cu test/cpu_layers.o -lcublasLt

# Several processes: the CPU program, and the GPU's on the emulation.
WORLD = $(if $(and $(LINUX),$(MPI),$(shell command -v mpirun)),./train_rrhf $(if $(shell command -v $(CXX)),test/train_emulated))
test/train_emulated: train_rrhf.cu test/cuda_emulation.h $(HEADERS)
	$(EMULATION) train_rrhf.cu -DPRECISION_FP32 -DUSE_MPI $(MPI) -lm

# Programs are built for the tests, and tests run, so many at once:
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))
ifneq ($(filter test,$(MAKECMDGOALS)),)
MAKEFLAGS += -j$(JOBS)
endif

# The number of passed and failed checks of all tests; the last line is the sum.
test: train_rrhf $(if $(CJSON),dev/convert) $(TESTS) $(CUDA_TESTS) $(filter test/%,$(WORLD))
	@$(if $(CJSON),,echo "not tested: dev/convert (no cJSON; Debian: libcjson-dev)")
	@$(if $(LINUX),,echo "not tested: the command line, the demo and the scripts (their tests are for Linux)")
	@$(if $(strip $(CUDA_TESTS)),,echo "not tested: the CUDA kernels (no $(CXX), or not Linux)")
	@$(if $(filter $(PTX_TESTS),$(CUDA_TESTS)),,echo "not tested: the CUDA kernels as nvcc compiles them (no nvcc, no python3 or no x86-64)")
	@$(if $(WORLD),,echo "not tested: several processes (no MPI with mpirun, or not Linux; Debian: libopenmpi-dev openmpi-bin)")
	@JOBS=$(JOBS) bash test/run.sh $(TESTS) $(patsubst test/test_cuda_races_%,"bash test/races.sh test/test_cuda_races_%",$(CUDA_TESTS)) \
	    $(if $(LINUX),"bash test/test_cli.sh" $(if $(WORLD),"bash test/test_world.sh $(WORLD)") "bash test/test_scripts.sh" "bash test/test_demo.sh$(if $(STB), plots)")

# A build with another compiler or other options starts afresh, as after installing a library: the name of a file in dev/
# is their checksum, and the file says which they are.
BUILD := $(CC) $(CFLAGS) $(OPTIONS) $(LIBS) $(BLAS)
STAMP := dev/.options-$(shell echo '$(BUILD)' | cksum | tr -d ' ')
train_rrhf train_rrhfcu dev/convert dev/imdb dev/table $(TESTS) $(CUDA_TESTS) test/cpu_layers.o test/train_emulated: $(STAMP)
dev/.options-%:
	@rm -f dev/.options-*; echo '$(BUILD)' > $@

clean:
	rm -f train_rrhf train_rrhfcu dev/convert dev/imdb dev/table dev/bench/bench_cuda dev/.precision-* dev/.options-*
	rm -f $(TESTS) $(CUDA_TESTS) test/cpu_layers.o test/train_emulated test/kernels_*

.PHONY: test clean
