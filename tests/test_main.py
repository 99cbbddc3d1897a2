from conftest import SMILE
def test_a(run, capsys):
    import time
    t=time.time()
    s = run("--run_train", *SMILE)
    print(time.time()-t, capsys.readouterr()); 
    assert s==0
    import os; os.system("find .")
    t=time.time()
    s = run("--run_test", *SMILE,model="adm")
    print(capsys.readouterr().err); print(time.time()-t)
    
def test_b(run):
    print(run.error("--run_test", *SMILE))
    
